//! Role and facts in, rendered documents out; a missing key is an error.
