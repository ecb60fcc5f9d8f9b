//! The StatefulSet decision and its execution, pure.
