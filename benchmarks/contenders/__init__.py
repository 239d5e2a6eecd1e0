"""One file per contender: the same training, each as a user of that library writes it."""
