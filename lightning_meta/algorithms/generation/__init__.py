"""Generation: new images of a class that a few of its images show."""
