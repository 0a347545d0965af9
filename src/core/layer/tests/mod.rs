//! Import as a whole, held against other readers.

mod meaning;
mod memory;
mod mutation;
mod oracle;
mod out;
mod recipes;
