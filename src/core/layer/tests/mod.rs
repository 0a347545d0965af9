//! Import as a whole, held against other readers.

mod oracle;
