//! The kinds of things that a container takes from the node, each with its key in `[tenant]`.

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident, $name:literal, $key:literal, $text:literal;)+) => {
        /// A kind of thing that a container takes from the node.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind),+];

            /// The value of the label `kind` in metrics, and the name that operators see.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name),+ }
            }

            /// The key of its limit in the configuration.
            pub fn key(self) -> &'static str {
                match self { $(Kind::$kind => $key),+ }
            }

            /// The words for what a container has at its limit.
            fn text(self) -> &'static str {
                match self { $(Kind::$kind => $text),+ }
            }
        }
    };
}

kinds! {
    /// Bytes of address space that guests beyond the pool reserve for their memories.
    AddressSpace, "address_space_bytes", "tenant.address_space_bytes_max", "as much address space reserved for guests beyond the pool";
    /// Memory mappings that guests beyond the pool take.
    Mappings, "mappings", "tenant.mappings_max", "as many memory mappings for guests beyond the pool";
    /// Files, directories and sockets of all WASI versions.
    Descriptors, "descriptors", "tenant.descriptors_max", "as many open files, directories and sockets";
    /// Workers that its guests hold in system calls and in calls that compute for long.
    BlockedWorkers, "blocked_workers", "tenant.blocked_workers_max", "as many threads in calls of its guests";
    /// Look-ups of names under way.
    Lookups, "lookups", "tenant.lookups_max", "as many look-ups of names under way";
    /// Requests to it at once, each an instance.
    HttpRequests, "http_requests", "tenant.http_requests_max", "as many HTTP requests at once";
    /// Requests of components of its application to each other.
    ComponentCalls, "component_calls", "tenant.component_calls_max", "as many calls between components at once";
    /// Connections of its clients.
    HttpConnections, "http_connections", "tenant.http_connections_max", "as many connections of clients";
    /// Connections for requests of its own.
    OutgoingConnections, "outgoing_connections", "tenant.outgoing_connections_max", "as many connections for requests of its own";
    /// Modules that are being read, compiled or prepared for it.
    Compiles, "compiles", "tenant.compiles_max", "as many modules that are being prepared";
    /// Execs, with those that have ended and are not deleted yet.
    Execs, "execs", "tenant.execs_max", "as many execs";
}

impl Kind {
    /// How many kinds there are.
    pub const COUNT: usize = Kind::ALL.len();

    /// The refusal of one more.
    pub(super) fn refusal(self, limit: u64, of_pod: bool) -> String {
        let (text, key) = (self.text(), self.key());
        match of_pod {
            false => format!("the container has {text} as it may: {limit} ({key})"),
            true => format!(
                "the containers of the pod together have {text} as they may: {limit} ({key}, tenant.pod_factor)"
            ),
        }
    }
}
