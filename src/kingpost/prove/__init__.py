"""The verb `prove`: does this change help this network on this data, by how much, at what cost, how sure?"""

from kingpost.verb import make_callable

make_callable(__name__)
