//! Real scans.
