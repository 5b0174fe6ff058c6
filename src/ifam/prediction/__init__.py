"""The pieces of `ifam.predict`: which images, how they are read and classified, and the tables of the answers."""
