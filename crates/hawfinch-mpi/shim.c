/* The few calls of MPI that training needs, as functions: names such as MPI_COMM_WORLD and MPI_BYTE are macros whose meaning
 * differs between MPI libraries. Every function returns MPI_SUCCESS or an error code; counts and places are bytes. */
#include <mpi.h>

static MPI_Comm ranks = MPI_COMM_NULL;

/* Starts MPI; `level` is 1 if calls may come from different threads, one at a time. */
int hawfinch_mpi_start(int *rank, int *size, int *level) {
    int provided = 0, started = 0;
    int e = MPI_Initialized(&started);
    if (e == MPI_SUCCESS && !started) {
        e = MPI_Init_thread(0, 0, MPI_THREAD_SERIALIZED, &provided);
    } else if (e == MPI_SUCCESS) {
        e = MPI_Query_thread(&provided);
    }
    if (e != MPI_SUCCESS) return e;
    /* Messages of ours do not mix with those of others. */
    e = MPI_Comm_dup(MPI_COMM_WORLD, &ranks);
    if (e != MPI_SUCCESS) return e;
    MPI_Comm_set_errhandler(ranks, MPI_ERRORS_RETURN);
    *level = provided >= MPI_THREAD_SERIALIZED;
    e = MPI_Comm_rank(ranks, rank);
    return e != MPI_SUCCESS ? e : MPI_Comm_size(ranks, size);
}

int hawfinch_mpi_end(void) {
    MPI_Comm_free(&ranks);
    return MPI_Finalize();
}

int hawfinch_mpi_abort(int code) { return MPI_Abort(MPI_COMM_WORLD, code); }

int hawfinch_mpi_error(int code, char *text, int room) {
    char all[MPI_MAX_ERROR_STRING];
    int n = 0;
    if (MPI_Error_string(code, all, &n) != MPI_SUCCESS) return 0;
    if (n > room) n = room;
    for (int i = 0; i < n; i++) text[i] = all[i];
    return n;
}

int hawfinch_mpi_all_to_all(const void *send, const int *to, const int *send_at, void *receive, const int *from,
                            const int *receive_at) {
    return MPI_Alltoallv(send, to, send_at, MPI_BYTE, receive, from, receive_at, MPI_BYTE, ranks);
}

int hawfinch_mpi_all_gather(const void *send, int n, void *receive, const int *counts, const int *at) {
    return MPI_Allgatherv(send, n, MPI_BYTE, receive, counts, at, MPI_BYTE, ranks);
}

int hawfinch_mpi_broadcast(void *bytes, int n, int root) { return MPI_Bcast(bytes, n, MPI_BYTE, root, ranks); }

int hawfinch_mpi_send(const void *bytes, int n, int to) { return MPI_Send(bytes, n, MPI_BYTE, to, 0, ranks); }

int hawfinch_mpi_receive(void *bytes, int n, int from) {
    MPI_Status status;
    int got = 0;
    int e = MPI_Recv(bytes, n, MPI_BYTE, from, 0, ranks, &status);
    if (e != MPI_SUCCESS) return e;
    e = MPI_Get_count(&status, MPI_BYTE, &got);
    if (e != MPI_SUCCESS) return e;
    return got == n ? MPI_SUCCESS : MPI_ERR_TRUNCATE;
}

int hawfinch_mpi_barrier(void) { return MPI_Barrier(ranks); }
