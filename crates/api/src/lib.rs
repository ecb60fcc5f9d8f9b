//! Kubernetes API kinds as data: schema, defaulting, validation, selectors, tables, errors.
