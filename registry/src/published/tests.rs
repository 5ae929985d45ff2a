//! Both directions, with the published vector.
