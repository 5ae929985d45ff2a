//! What is read, and one clear line for everything that is wrong.
