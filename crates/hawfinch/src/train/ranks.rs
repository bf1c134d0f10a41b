//! The ranks of a run: one process, or those of an MPI job.

use std::process::ExitCode;
use std::sync::Arc;

use hawfinch_train::collective::{Alone, Collective};

use crate::fail;

/// Processes of the job that this one was started in, as far as its launcher tells; 1 where there is none.
fn started(env: impl Fn(&str) -> Option<String>) -> usize {
    // Open MPI's mpirun; that of MPICH, Intel MPI and MVAPICH; Slurm's srun.
    let sizes = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"];
    let slurm = env("PMIX_RANK").and_then(|_| env("SLURM_NTASKS"));
    let sizes = sizes.iter().filter_map(|name| env(name)).chain(slurm);
    sizes.filter_map(|n| n.parse().ok()).max().unwrap_or(1).max(1)
}

/// Joins the other processes of the job.
///
/// # Errors
/// There are others, and this program was built without MPI, or MPI does not find them.
pub fn join() -> anyhow::Result<Arc<dyn Collective>> {
    match started(|name| std::env::var(name).ok()) {
        1 => Ok(Arc::new(Alone)),
        processes => joined(processes),
    }
}

#[cfg(not(feature = "mpi"))]
fn joined(processes: usize) -> anyhow::Result<Arc<dyn Collective>> {
    Err(fail::usage(format!(
        "this hawfinch was built without MPI, and {processes} processes of it were started, which would all do the same: build it with `--features mpi`, or start one"
    )))
}

#[cfg(feature = "mpi")]
fn joined(processes: usize) -> anyhow::Result<Arc<dyn Collective>> {
    let mpi = hawfinch_mpi::Mpi::start()?;
    if mpi.size() != processes {
        return Err(fail::usage(format!(
            "{processes} processes were started, and MPI connects {} of them: start them with the mpirun of the MPI that this program was built with, or with `srun --mpi=pmix`",
            mpi.size()
        )));
    }
    // Those that wait for a thread that broke down would wait for ever.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        tell(info);
        hawfinch_mpi::abort(101);
    }));
    Ok(Arc::new(mpi))
}

/// What a rank's work came to; an error ends the whole job.
pub fn leave(ranks: &dyn Collective, result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    let Err(e) = result else { return result };
    if ranks.size() == 1 {
        return Err(e);
    }
    if ranks.rank() > 0 {
        // What all have to say rank 0 says: it has this long to end them.
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    let code = if e.is::<fail::Usage>() { 2 } else { 1 };
    let _ = fail::report(Err(e.context(format!("rank {}", ranks.rank()))));
    abort(code)
}

#[cfg(feature = "mpi")]
fn abort(code: i32) -> ! {
    hawfinch_mpi::abort(code);
    std::process::exit(code)
}

#[cfg(not(feature = "mpi"))]
fn abort(code: i32) -> ! {
    std::process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_what_they_leave() {
        let of = |set: &[(&str, &str)]| {
            let set: Vec<(String, String)> =
                set.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            started(move |name| set.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone()))
        };
        assert_eq!(of(&[]), 1);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "1")]), 4);
        assert_eq!(of(&[("PMI_SIZE", "2")]), 2);
        assert_eq!(of(&[("PMIX_RANK", "0"), ("SLURM_NTASKS", "8")]), 8);
        // A script of Slurm's that starts one process.
        assert_eq!(of(&[("SLURM_NTASKS", "8"), ("SLURM_PROCID", "0")]), 1);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "1")]), 1);
    }
}
