//! Node agent, shim, containers, volumes, network, probes.
