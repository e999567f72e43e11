"""A folder of photos a class to a model of those classes: a new last layer on a frozen network."""
