//! Compiles `shim.c` with the compiler of whatever MPI is installed (`mpicc`, or what `MPICC` names) and asks it what to link.

fn main() {
    println!("cargo::rerun-if-changed=shim.c");
    println!("cargo::rerun-if-env-changed=MPICC");
    #[cfg(feature = "link")]
    link();
}

#[cfg(feature = "link")]
fn link() {
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    // Open MPI, MPICH and Intel MPI all print the command that they would run.
    let shown = std::process::Command::new(&mpicc).arg("-show").output();
    let flags = match shown {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).into_owned(),
        _ => {
            println!(
                "cargo::error=`{mpicc}` cannot be run: install an MPI library with its compiler (Debian: libopenmpi-dev), or set MPICC to its path"
            );
            return;
        }
    };
    cc::Build::new().compiler(&mpicc).file("shim.c").warnings(true).compile("hawfinch_mpi_shim");
    for flag in flags.split_whitespace() {
        if let Some(folder) = flag.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={folder}");
        } else if let Some(library) = flag.strip_prefix("-l") {
            println!("cargo::rustc-link-lib=dylib={library}");
        }
    }
}
