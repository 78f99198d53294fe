//! Expectation, inventory and measurements in, findings out.
