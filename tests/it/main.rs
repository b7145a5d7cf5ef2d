//! Behaviour, one module per surface or failure family.
