//! Three-way merge of /etc.
