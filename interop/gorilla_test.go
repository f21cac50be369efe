package interop

import (
	"net/http"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestGorillaWebSocket: nothing is lost, neither a message nor a handshake.
func TestGorillaWebSocket(t *testing.T) {
	var up websocket.Upgrader
	play(t, func() server {
		return webSockets(t, func(w http.ResponseWriter, r *http.Request) (socket, error) {
			c, err := up.Upgrade(w, r, nil)
			return gorilla{c}, err
		})
	}, webSocketClient(func(l *load) (socket, error) {
		c, _, err := (&websocket.Dialer{NetDialContext: l.dialContext}).Dial("ws://server/", nil)
		return gorilla{c}, err
	})).wantNoLoss()
}

type gorilla struct{ *websocket.Conn }

func (g gorilla) read() (string, error) {
	_, b, err := g.ReadMessage()
	return string(b), err
}

func (g gorilla) write(s string) error { return g.WriteMessage(websocket.TextMessage, []byte(s)) }

func (g gorilla) leave() error {
	defer g.Close()
	m := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	if err := g.WriteControl(websocket.CloseMessage, m, time.Now().Add(time.Minute)); err != nil {
		return err
	}
	for {
		if _, err := g.read(); err != nil {
			if g.left(err) {
				return nil
			}
			return err
		}
	}
}

// left closes the connection: ReadMessage has answered the Close frame.
func (g gorilla) left(err error) bool {
	g.Close()
	return websocket.IsCloseError(err, websocket.CloseNormalClosure)
}
