//! Real software in containers: databases and coordinators from Debian's packages, in images that are made here, from
//! manifests as public charts have them. Three members each; a client in a pod of its own counts what was acknowledged while
//! everything fails that can ([`trial`]), and all of it is there in the end.

mod disk;
mod galera;
mod images;
mod machine;
mod postgres;
mod rabbitmq;
mod redis;
mod trial;
mod zookeeper;
