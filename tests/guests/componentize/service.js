addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  switch (url.pathname) {
    case "/":
      return new Response("hello from JavaScript\n", { headers: { "content-type": "text/plain" } });
    case "/mirror":
      return new Response(request.body);
    case "/fetch":
      try {
        const from = await fetch(url.searchParams.get("url"));
        return new Response(from.body, { status: from.status });
      } catch (error) {
        return new Response(`${error}\n`, { status: 502 });
      }
    default:
      return new Response("no such path\n", { status: 404 });
  }
}
