//! DNS records of Services and EndpointSlices, answers, and the node-dns process.
