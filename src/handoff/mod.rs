//! Passports and what is handed to others.
