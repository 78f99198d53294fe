//! Recipes, build, the chunked format, signatures, catalogue.
