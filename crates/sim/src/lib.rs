//! Deterministic cluster for the planner: faults, time, scale, model checking.
