"""Many nets instead of one: where they come from, how they vote, and how sure they are."""
