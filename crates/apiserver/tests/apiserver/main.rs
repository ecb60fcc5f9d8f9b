//! The server in this process, through its service and through its listener. One binary: each would link all of it.

mod audit;
mod binary;
mod custom;
mod documents;
mod events;
mod fairness;
mod fuzz;
mod kube_rs;
mod listener;
mod objects;
mod pods;
mod sign_in;
mod support;
mod tokens;
mod usage;
mod verbs;
mod watches;
