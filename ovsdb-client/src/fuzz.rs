//! Broken messages, updates, remotes and files, against what reads them.
mod files;
mod stream;
mod updates;
