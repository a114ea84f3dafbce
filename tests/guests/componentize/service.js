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
    case "/fetch-all": {
      // So many requests at once.
      const from = Array.from({ length: Number(url.searchParams.get("count")) }, () => fetch(url.searchParams.get("url")));
      const statuses = await Promise.all(from.map(async (answer) => (await (await answer).text(), (await answer).status)));
      return new Response(`${statuses.filter((status) => status === 200).length} of ${statuses.length}\n`);
    }
    default:
      return new Response("no such path\n", { status: 404 });
  }
}
