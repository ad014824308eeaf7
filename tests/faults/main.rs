//! A training cluster of real processes, and what may happen to it. The promise: the same model file, to the byte.
//!
//! Failures are triggered by (rank, step, phase) through `JRS_FAULT`, not by time.

mod chaos;
mod cluster;
mod coordinator;
mod drain;
mod http;
mod kubernetes;
mod network;
mod partition;
mod promise;
mod seaweed;
mod store;
