"""Models written for the tests, independently of the files whose weights they take."""
