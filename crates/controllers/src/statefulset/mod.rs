//! The driver of the pure planner: API objects in, API calls out.
