"""The satellite's machine image as data: units, limits, BuildKit's configuration and user data, from typed settings. Pure.

It must never start anything, and never read or write a file except the programs that it puts into the image."""
