"""The figures: bentpipe beside what a user would pick instead. README.md says how to run and read them."""
