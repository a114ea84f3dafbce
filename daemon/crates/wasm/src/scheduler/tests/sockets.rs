//! Sockets that workers watch.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::sockets::place;
use super::*;

/// Both ends of a connection; the second is the scheduler's.
fn connection(scheduler: &Scheduler) -> (TcpStream, Socket) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nonblocking(true).unwrap();
    (client, scheduler.socket(server).unwrap())
}

/// Sends back whatever comes, until the end.
async fn echo(mut socket: Socket) -> std::io::Result<u64> {
    let (mut room, mut sum) = ([0; 1 << 12], 0);
    loop {
        let read = socket.read(&mut room).await?;
        if read == 0 {
            socket.shutdown().await?;
            return Ok(sum);
        }
        socket.write_all(&room[..read]).await?;
        sum += read as u64;
    }
}

fn ask(client: &mut TcpStream, text: &[u8]) {
    client.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, text);
}

#[test]
fn a_client_is_answered_until_it_closes_and_nothing_is_watched_then() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 2);
    let (send, ends) = mpsc::channel();
    let mut clients: Vec<_> = (0..20)
        .map(|_| {
            let (client, socket) = connection(&scheduler);
            let send = send.clone();
            scheduler.spawn(Arc::default(), echo(socket), move |end| send.send(end).unwrap());
            client
        })
        .collect();
    for _ in 0..50 {
        clients.iter_mut().for_each(|client| ask(client, b"hello"));
    }
    drop(clients);
    for _ in 0..20 {
        let GuestEnd::Completed(echoed) = ends.recv_timeout(SOON).unwrap() else { panic!("it was not killed") };
        assert_eq!(echoed.unwrap(), 250);
    }
    assert!(!scheduler.shared.sockets.any());
    scheduler.stop();
}

#[test]
fn megabytes_pass_a_client_that_reads_late() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (mut client, socket) = connection(&scheduler);
    let (send, ends) = mpsc::channel();
    scheduler.spawn(Arc::default(), echo(socket), move |end| send.send(end).unwrap());
    let mut writer = client.try_clone().unwrap();
    let bytes: Vec<u8> = (0..20_000_000u32).map(|at| (at / 7) as u8).collect();
    let written = bytes.clone();
    let writes = std::thread::spawn(move || {
        writer.write_all(&written).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    writes.join().unwrap();
    assert!(answer == bytes, "{} of {} bytes", answer.len(), bytes.len());
    assert!(matches!(ends.recv_timeout(SOON).unwrap(), GuestEnd::Completed(Ok(20_000_000))));
    scheduler.stop();
}

#[test]
fn clients_are_answered_while_every_worker_computes() {
    let _cores = CORES.lock();
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (send, ends) = mpsc::channel();
    let busy = Arc::new(Guest::default());
    let also = send.clone();
    scheduler.spawn(busy.clone(), compute(scheduler.tick(&busy)), move |_| also.send("computed").unwrap());
    let (mut client, socket) = connection(&scheduler);
    scheduler.spawn(Arc::default(), echo(socket), move |_| send.send("echoed").unwrap());
    for _ in 0..20 {
        ask(&mut client, b"are you there?");
    }
    drop(client);
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "echoed");
    busy.kill();
    assert_eq!(ends.recv_timeout(SOON).unwrap(), "computed");
    scheduler.stop();
}

#[test]
fn an_event_of_a_closed_socket_is_not_its_successors() {
    let runtime = runtime();
    let scheduler = scheduler(&runtime, 1);
    let (client, socket) = connection(&scheduler);
    let token = socket.token;
    drop((client, socket));
    let (_client, successor) = connection(&scheduler);
    assert_eq!(place(successor.token), place(token), "the place is used again");
    assert_ne!(successor.token, token);
    scheduler.stop();
}

#[test]
fn a_part_lets_the_one_that_it_has_woken_go_first_and_then_goes_on() {
    let runtime = runtime();
    let scheduler = Arc::new(scheduler(&runtime, 1));
    let (send, said) = mpsc::channel();
    let (container, inside) = (Arc::new(Guest::default()), scheduler.clone());
    let leader = container.clone();
    let first = async move {
        kept_part_first().await;
        send.send("nothing waits").unwrap();
        let woken = send.clone();
        inside.spawn_part(Arc::new(Guest::part(&leader)), async {}, move |_| woken.send("woken").unwrap());
        let stranger = send.clone();
        inside.spawn(Arc::default(), async {}, move |_| stranger.send("stranger").unwrap());
        kept_part_first().await;
        send.send("goes on").unwrap();
    };
    scheduler.spawn_part(Arc::new(Guest::part(&container)), first, |_| ());
    let order: Vec<_> = (0..4).map(|_| said.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(order, ["nothing waits", "woken", "goes on", "stranger"]);
    scheduler.stop();
}
