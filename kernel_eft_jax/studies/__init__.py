"""Studies: published work redone with the public names of this package alone, as a user would write it."""
