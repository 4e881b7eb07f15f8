"""Tests of the load tests: a measuring instrument has to be right too."""
