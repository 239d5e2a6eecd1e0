"""Train: the loop, its guards, and the techniques that change a training step."""

from kingpost.verb import make_callable

make_callable(__name__)
