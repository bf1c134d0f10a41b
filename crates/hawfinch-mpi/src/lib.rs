//! Ranks that are processes of an MPI job: `Mpi` is a [`Collective`](hawfinch_train::collective::Collective) over a C shim
//! that any MPI library's `mpicc` compiles. Without the feature `link` there is nothing here.

#[cfg(feature = "link")]
mod mpi;

#[cfg(feature = "link")]
pub use mpi::{Mpi, abort};
