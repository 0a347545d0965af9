//! A mount behaves as a plain directory does: random operations on both.
