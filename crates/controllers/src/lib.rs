//! Controllers over kube::Client.
