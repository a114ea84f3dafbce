//! Guests that reach the bounds of their imports, in an engine with the linkers of the real ones.

use std::fs;
use std::future::ready;
use std::sync::Arc;

use http::{Request, Response};
use wasmtime::component::{Component, Linker, TypedFunc};
use wasmtime::{Engine, Module, Store};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use super::linkers::{component_linker, core_linker};
use crate::access::Access;
use crate::budget::GuestDescriptors;
use crate::engine::structure::StructureLimits;
use crate::host_memory::HostMemory;
use crate::memory::{MemoryLimiter, MemoryUse};
use crate::state::{ComponentState, CoreState, fields, resources};
use hearth_base::tenant::{Kind, Limits, Tenant};

const STRUCTURE: StructureLimits = StructureLimits { core_instances: 2, memories: 1, tables: 1 };

/// More than any of these guests opens.
const MANY: u32 = 1_000;

fn limiter() -> MemoryLimiter {
    MemoryLimiter::new(Arc::new(MemoryUse::new(1 << 30)), Arc::default(), STRUCTURE)
}

/// Guests' requests are not sent.
struct NoNetwork;

type Sent = Result<(Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for NoNetwork {
    fn send_request(
        &mut self,
        _: Request<WasiBody>,
        _: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(ready(Err(Error::HttpRequestDenied)))
    }
}

/// A store with a preview 1 module, whose root is `root`.
async fn core(
    root: &std::path::Path,
    descriptors: GuestDescriptors,
    text: &str,
) -> (Store<CoreState>, wasmtime::Instance) {
    let engine = Engine::default();
    let mut wasi = WasiCtx::builder();
    wasi.allow_blocking_current_thread(true).preopened_dir(root, "/", FsPerms::ReadWrite).unwrap();
    let state = CoreState { wasi: wasi.build_p1(), limits: limiter(), partly_read_only: false, descriptors };
    let mut store = Store::new(&engine, state);
    store.limiter(|state| &mut state.limits);
    let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
    let instance = core_linker(&engine).unwrap().instantiate_async(&mut store, &module).await.unwrap();
    (store, instance)
}

/// A store with a component.
async fn component(
    descriptors: GuestDescriptors,
    text: &str,
) -> (Store<ComponentState>, wasmtime::component::Instance) {
    let engine = Engine::default();
    let state = ComponentState {
        ctx: WasiCtx::builder().allow_tcp(true).allow_udp(true).build(),
        table: resources(100),
        limits: limiter(),
        descriptors,
        host_memory: HostMemory::new(&Arc::new(MemoryUse::new(1 << 30))),
        partly_read_only: false,
        names: None,
        guest: Arc::default(),
        access: Access::default(),
        http: fields(1_000),
        outgoing: Box::new(NoNetwork),
    };
    let mut store = Store::new(&engine, state);
    store.limiter(|state| &mut state.limits);
    let linker: Linker<ComponentState> = component_linker(&engine, &[]).unwrap();
    let component = Component::new(&engine, wat::parse_str(text).unwrap()).unwrap();
    let instance = linker.instantiate_async(&mut store, &component).await.unwrap();
    (store, instance)
}

fn descriptors(limit: u32) -> (Arc<Tenant>, GuestDescriptors) {
    let container = Tenant::unnamed(&Limits::none().with(Kind::Descriptors, limit.into()));
    (container.clone(), GuestDescriptors::new(container, MANY))
}

#[tokio::test]
async fn a_preview_1_program_exits_with_any_status() {
    let root = tempfile::tempdir().unwrap();
    for status in [0, 1, 125, 126, 134, 137, 200, 255, 256, -1] {
        let text = format!(
            "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
               (func (export \"_start\") (call $exit (i32.const {status})) unreachable))"
        );
        let (mut store, instance) = core(root.path(), descriptors(MANY).1, &text).await;
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start").unwrap();
        let error = start.call_async(&mut store, ()).await.unwrap_err();
        assert_eq!(error.downcast_ref::<I32Exit>().map(|exit| exit.0), Some(status), "{error:?}");
    }
}

#[tokio::test]
async fn a_preview_1_program_opens_as_many_files_as_its_container_may() {
    const MFILE: i32 = 33;
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "x").unwrap();
    let text = "(module
        (import \"wasi_snapshot_preview1\" \"path_open\"
          (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))
        (memory (export \"memory\") 1)
        (data (i32.const 0) \"file\")
        (func (export \"open\") (result i32)
          (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 0)
            (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
        (func (export \"close\") (result i32) (call $close (i32.load (i32.const 16)))))";
    let (container, guest) = descriptors(2);
    let (mut store, instance) = core(root.path(), guest, text).await;
    let open = instance.get_typed_func::<(), i32>(&mut store, "open").unwrap();
    let close = instance.get_typed_func::<(), i32>(&mut store, "close").unwrap();
    let mut errnos = Vec::new();
    for _ in 0..3 {
        errnos.push(open.call_async(&mut store, ()).await.unwrap());
    }
    assert_eq!((errnos, container.used(Kind::Descriptors)), (vec![0, 0, MFILE], 2));
    assert_eq!(close.call_async(&mut store, ()).await.unwrap(), 0);
    assert_eq!(container.used(Kind::Descriptors), 1);
    // What cannot be opened counts as nothing.
    fs::remove_file(root.path().join("file")).unwrap();
    assert_ne!(open.call_async(&mut store, ()).await.unwrap(), 0);
    assert_eq!(container.used(Kind::Descriptors), 1);
    drop(store);
    assert_eq!(container.used(Kind::Descriptors), 0);
}

/// A component that makes sockets, and drops them by their handles.
const SOCKETS: &str = r#"(component
    (import "wasi:sockets/network@0.2.0" (instance $network
        (type $e (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory" "timeout"
            "concurrency-conflict" "not-in-progress" "would-block" "invalid-state" "new-socket-limit"
            "address-not-bindable" "address-in-use" "remote-unreachable" "connection-refused" "connection-reset"
            "connection-aborted" "datagram-too-large" "name-unresolvable" "temporary-resolver-failure"
            "permanent-resolver-failure"))
        (export "error-code" (type (eq $e)))
        (type $f (enum "ipv4" "ipv6"))
        (export "ip-address-family" (type (eq $f)))))
    (alias export $network "error-code" (type $error))
    (alias export $network "ip-address-family" (type $family))
    (import "wasi:sockets/tcp@0.2.0" (instance $tcp (export "tcp-socket" (type (sub resource)))))
    (import "wasi:sockets/udp@0.2.0" (instance $udp (export "udp-socket" (type (sub resource)))))
    (alias export $tcp "tcp-socket" (type $tcp-socket))
    (alias export $udp "udp-socket" (type $udp-socket))
    (import "wasi:sockets/tcp-create-socket@0.2.0" (instance $tcp-create
        (alias outer 1 $tcp-socket (type $s)) (alias outer 1 $error (type $e)) (alias outer 1 $family (type $f))
        (export "tcp-socket" (type $s2 (eq $s)))
        (export "error-code" (type $e2 (eq $e)))
        (export "ip-address-family" (type $f2 (eq $f)))
        (export "create-tcp-socket" (func (param "address-family" $f2) (result (result (own $s2) (error $e2)))))))
    (import "wasi:sockets/udp-create-socket@0.2.0" (instance $udp-create
        (alias outer 1 $udp-socket (type $s)) (alias outer 1 $error (type $e)) (alias outer 1 $family (type $f))
        (export "udp-socket" (type $s2 (eq $s)))
        (export "error-code" (type $e2 (eq $e)))
        (export "ip-address-family" (type $f2 (eq $f)))
        (export "create-udp-socket" (func (param "address-family" $f2) (result (result (own $s2) (error $e2)))))))
    (core module $memory (memory (export "memory") 1))
    (core instance $memory (instantiate $memory))
    (core func $tcp-create (canon lower (func $tcp-create "create-tcp-socket") (memory $memory "memory")))
    (core func $udp-create (canon lower (func $udp-create "create-udp-socket") (memory $memory "memory")))
    (core func $tcp-drop (canon resource.drop $tcp-socket))
    (core func $udp-drop (canon resource.drop $udp-socket))
    (core module $main
        (import "m" "memory" (memory 1))
        (import "m" "tcp-create" (func $tcp-create (param i32 i32)))
        (import "m" "udp-create" (func $udp-create (param i32 i32)))
        (import "m" "tcp-drop" (func $tcp-drop (param i32)))
        (import "m" "udp-drop" (func $udp-drop (param i32)))
        (func $result (result i32)
            (if (result i32) (i32.load8_u (i32.const 16))
                (then (i32.sub (i32.const -1) (i32.load8_u (i32.const 20))))
                (else (i32.load (i32.const 20)))))
        (func (export "tcp") (result i32) (call $tcp-create (i32.const 0) (i32.const 16)) (call $result))
        (func (export "udp") (result i32) (call $udp-create (i32.const 0) (i32.const 16)) (call $result))
        (func (export "drop-tcp") (param i32) (call $tcp-drop (local.get 0)))
        (func (export "drop-udp") (param i32) (call $udp-drop (local.get 0))))
    (core instance $main (instantiate $main (with "m" (instance
        (export "memory" (memory $memory "memory"))
        (export "tcp-create" (func $tcp-create)) (export "udp-create" (func $udp-create))
        (export "tcp-drop" (func $tcp-drop)) (export "udp-drop" (func $udp-drop))))))
    (func (export "tcp") (result s32) (canon lift (core func $main "tcp")))
    (func (export "udp") (result s32) (canon lift (core func $main "udp")))
    (func (export "drop-tcp") (param "handle" s32) (canon lift (core func $main "drop-tcp")))
    (func (export "drop-udp") (param "handle" s32) (canon lift (core func $main "drop-udp"))))"#;

#[tokio::test]
async fn a_component_makes_as_many_sockets_as_its_container_may() {
    /// `new-socket-limit`, as the guest above tells it.
    const LIMIT: i32 = -1 - 10;
    let (container, guest) = descriptors(2);
    let (mut store, instance) = component(guest, SOCKETS).await;
    let function = |store: &mut Store<ComponentState>, name: &str| -> TypedFunc<(), (i32,)> {
        instance.get_typed_func(store, name).unwrap()
    };
    let (tcp, udp) = (function(&mut store, "tcp"), function(&mut store, "udp"));
    let drop_tcp: TypedFunc<(i32,), ()> = instance.get_typed_func(&mut store, "drop-tcp").unwrap();
    let drop_udp: TypedFunc<(i32,), ()> = instance.get_typed_func(&mut store, "drop-udp").unwrap();
    let (first,) = tcp.call_async(&mut store, ()).await.unwrap();
    let (second,) = udp.call_async(&mut store, ()).await.unwrap();
    assert!(first >= 0 && second >= 0, "{first} {second}");
    assert_eq!(tcp.call_async(&mut store, ()).await.unwrap(), (LIMIT,));
    assert_eq!(udp.call_async(&mut store, ()).await.unwrap(), (LIMIT,));
    drop_tcp.call_async(&mut store, (first,)).await.unwrap();
    assert_eq!(container.used(Kind::Descriptors), 1);
    drop_udp.call_async(&mut store, (second,)).await.unwrap();
    assert_eq!(container.used(Kind::Descriptors), 0);
    assert!(udp.call_async(&mut store, ()).await.unwrap().0 >= 0);
    drop(store);
    assert_eq!(container.used(Kind::Descriptors), 0);
}

/// A component that gives a request a method of so many bytes; 1: it is refused.
const METHOD: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $http
        (export "fields" (type $fields (sub resource)))
        (export "outgoing-request" (type $request (sub resource)))
        (type $m (variant (case "get") (case "head") (case "post") (case "put") (case "delete") (case "connect")
            (case "options") (case "trace") (case "patch") (case "other" string)))
        (export "method" (type $method (eq $m)))
        (export "headers" (type $headers (eq $fields)))
        (export "[constructor]fields" (func (result (own $fields))))
        (export "[constructor]outgoing-request" (func (param "headers" (own $headers)) (result (own $request))))
        (export "[method]outgoing-request.set-method"
            (func (param "self" (borrow $request)) (param "method" $method) (result (result))))))
    (core module $memory (memory (export "memory") 2))
    (core instance $memory (instantiate $memory))
    (core func $fields (canon lower (func $http "[constructor]fields")))
    (core func $request (canon lower (func $http "[constructor]outgoing-request")))
    (core func $set (canon lower (func $http "[method]outgoing-request.set-method") (memory $memory "memory")))
    (core module $main
        (import "m" "memory" (memory 1))
        (import "m" "fields" (func $fields (result i32)))
        (import "m" "request" (func $request (param i32) (result i32)))
        (import "m" "set" (func $set (param i32 i32 i32 i32) (result i32)))
        (func (export "set") (param i32) (result i32)
            (memory.fill (i32.const 0) (i32.const 77) (local.get 0))
            (call $set (call $request (call $fields)) (i32.const 9) (i32.const 0) (local.get 0))))
    (core instance $main (instantiate $main (with "m" (instance
        (export "memory" (memory $memory "memory")) (export "fields" (func $fields))
        (export "request" (func $request)) (export "set" (func $set))))))
    (func (export "set") (param "bytes" s32) (result s32) (canon lift (core func $main "set"))))"#;

#[tokio::test]
async fn a_long_method_is_refused() {
    let (mut store, instance) = component(descriptors(MANY).1, METHOD).await;
    let set: TypedFunc<(i32,), (i32,)> = instance.get_typed_func(&mut store, "set").unwrap();
    for (bytes, refused) in [(1, 0), (64, 0), (65, 1), (100_000, 1)] {
        assert_eq!(set.call_async(&mut store, (bytes,)).await.unwrap(), (refused,), "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_store_has_no_more_instances_memories_and_tables_than_it_may() {
    let engine = Engine::default();
    let instance = |text: &'static str, times: usize| {
        let module = Module::new(&engine, wat::parse_str(text).unwrap()).unwrap();
        let (_, guest) = descriptors(MANY);
        let state = CoreState {
            wasi: WasiCtx::builder().build_p1(),
            limits: limiter(),
            partly_read_only: false,
            descriptors: guest,
        };
        let mut store = Store::new(&engine, state);
        store.limiter(|state| &mut state.limits);
        let linker = core_linker(&engine).unwrap();
        async move {
            for _ in 0..times {
                linker.instantiate_async(&mut store, &module).await?;
            }
            Ok::<(), wasmtime::Error>(())
        }
    };
    assert!(instance("(module)", 2).await.is_ok());
    assert!(instance("(module)", 3).await.is_err());
    assert!(instance("(module (memory 0) (table 0 funcref))", 1).await.is_ok());
    assert!(instance("(module (memory 0) (memory 0))", 1).await.is_err());
    assert!(instance("(module (table 0 funcref) (table 0 funcref))", 1).await.is_err());
}
