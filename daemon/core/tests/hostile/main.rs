//! What outsiders, strangers, and trusted peers gone bad can do to a core:
//! nothing. The numbers in the tests' comments are those of the protocol page
//! "Known weaknesses". All of it in virtual time.

#[path = "../support/crypto.rs"]
mod crypto;
mod exchange;
mod frames;
mod mutations;
mod net;
mod networks;
mod paths;
mod streams;
mod trust;
mod villain;
