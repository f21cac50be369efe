package interop

import (
	"context"
	"net/http"
	"testing"

	"github.com/coder/websocket"
)

// TestCoderWebSocket: nothing is lost, neither a message nor a handshake.
func TestCoderWebSocket(t *testing.T) {
	play(t, func() server {
		return webSockets(t, func(w http.ResponseWriter, r *http.Request) (socket, error) {
			c, err := websocket.Accept(w, r, nil)
			return coder{c}, err
		})
	}, webSocketClient(func(l *load) (socket, error) {
		tr := &http.Transport{DialContext: l.dialContext}
		c, _, err := websocket.Dial(context.Background(), "ws://server/",
			&websocket.DialOptions{HTTPClient: &http.Client{Transport: tr}})
		return coder{c}, err
	})).wantNoLoss()
}

type coder struct{ *websocket.Conn }

func (c coder) read() (string, error) {
	_, b, err := c.Read(context.Background())
	return string(b), err
}

func (c coder) write(s string) error {
	return c.Write(context.Background(), websocket.MessageText, []byte(s))
}

// leave makes the closing handshake.
func (c coder) leave() error { return c.Close(websocket.StatusNormalClosure, "") }

// left closes the connection: Read has answered the Close frame.
func (c coder) left(err error) bool {
	c.CloseNow()
	return websocket.CloseStatus(err) == websocket.StatusNormalClosure
}
