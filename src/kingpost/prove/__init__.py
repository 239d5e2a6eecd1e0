"""The verb `prove`: does this change help this network on this data, by how much, at what cost, and how sure is that?"""
