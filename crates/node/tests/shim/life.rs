//! Starting, restarting and ending of containers.

use crate::harness::*;

#[tokio::test]
async fn a_container_runs_to_its_end_and_its_exit_code_is_told() {
    let mut pod = TestPod::new(vec![script("a", "echo hello; echo oops >&2; exit 3")]);
    let state = pod.run_to_end().await;
    let end = ended(&state.containers[0]);
    assert_eq!((end.exit_code, end.signal, end.reason.as_str()), (3, None, "Error"), "{end:?}");
    let mut printed = pod.printed("a", 0);
    printed.sort();
    assert_eq!(printed, ["hello", "oops"]);
}
