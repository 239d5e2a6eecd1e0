"""The gradient, and techniques that change how it is taken or used."""
