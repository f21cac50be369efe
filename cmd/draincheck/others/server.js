// node's http server, stopped as its documentation says: close() takes no new
// connections, closes the idle ones, and waits for the others.
const http = require('http');

const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    if (!request.url.startsWith('/download')) {
      response.end('hello\n');
      return;
    }
    let pieces = 5;
    const send = () => {
      response.write('x'.repeat(256));
      pieces--;
      if (pieces > 0) setTimeout(send, 20);
      else setTimeout(() => response.end(), 20);
    };
    send();
  });
});
server.listen({{.Port}}, '127.0.0.1');

process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  setTimeout(() => process.exit(0), 2000); // as long as the others have
});
