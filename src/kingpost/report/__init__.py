"""Report: figures and HTML; the only place that draws."""

from kingpost.verb import make_callable

make_callable(__name__)
