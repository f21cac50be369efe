package traffic

import (
	"bufio"
	"context"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// The frames of RFC 6455, as far as an echo needs them.
const (
	opText  = 1
	opClose = 8
	opPing  = 9
	opPong  = 10

	maxFrame = 1 << 16
	farewell = "bye" // Handler's last message: send no more, and close
)

// The codes of close frames that are a farewell (RFC 6455 7.4.1, and IANA's
// registry for 1012): the server has nothing more to say, and the client may go
// on elsewhere. A close frame without a code is one as well.
var farewellCodes = map[int]bool{1000: true, 1001: true, 1005: true, 1012: true}

// closeCode returns a close frame's code; 1005 stands for none.
func closeCode(payload []byte) int {
	if len(payload) < 2 {
		return 1005
	}
	return int(binary.BigEndian.Uint16(payload))
}

// A closeError says that the server closed the WebSocket by a close frame.
type closeError struct{ code int }

func (e *closeError) Error() string {
	return fmt.Sprintf("the server closed the WebSocket with the code %d", e.code)
}

// AcceptKey returns what a server answers to a Sec-WebSocket-Key (RFC 6455 1.3).
func AcceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// writeFrame writes one unfragmented frame in a single Write. Clients mask,
// with a mask of zeros: it need not hide anything from a proxy here.
func writeFrame(w io.Writer, op byte, payload []byte, mask bool) error {
	b := []byte{0x80 | op, 0}
	if len(payload) < 126 {
		b[1] = byte(len(payload))
	} else {
		b[1] = 126
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	if mask {
		b[1] |= 0x80
		b = append(b, 0, 0, 0, 0)
	}
	_, err := w.Write(append(b, payload...))
	return err
}

// readFrame reads one frame. Of one with more than maxFrame bytes it returns no
// payload.
func readFrame(br *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(br, head[:]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1] & 0x7f)
	if ext := map[uint64]int{126: 2, 127: 8}[size]; ext > 0 {
		var b [8]byte
		if _, err := io.ReadFull(br, b[8-ext:]); err != nil {
			return 0, nil, unexpected(err)
		}
		size = binary.BigEndian.Uint64(b[:])
	}
	if head[0]&0x70 != 0 || size > 1<<62 {
		return 0, nil, &failure{causeWrong, fmt.Errorf("a WebSocket frame of header %x and %d bytes", head, size)}
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(br, mask[:]); err != nil {
			return 0, nil, unexpected(err)
		}
	}
	if size > maxFrame {
		_, err := io.CopyN(io.Discard, br, int64(size))
		return head[0] & 0x0f, nil, unexpected(err)
	}
	payload = make([]byte, size)
	if _, err := io.ReadFull(br, payload); err != nil {
		return 0, nil, unexpected(err)
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0x0f, payload, nil
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A wsClient sends a message and waits for its echo.
type wsClient struct{ line }

func (c *wsClient) do(id string) (Outcome, error) {
	deadline := time.Now().Add(c.load.Timeout)
	if c.over() {
		c.close()
	}
	if err := c.dial(deadline); err != nil {
		return Refused, err
	}
	c.conn.SetDeadline(deadline)
	if !c.used {
		if err := c.upgrade(id); err != nil {
			c.close()
			return Lost, err
		}
		c.used = true
	}
	err := c.echo(id)
	if ce := (*closeError)(nil); errors.As(err, &ce) {
		c.goodbye()
		cause := fmt.Sprintf("close frame %d", ce.code)
		if farewellCodes[ce.code] {
			return Refused, &failure{cause, err}
		}
		return Lost, &failure{cause, err}
	}
	if err != nil {
		c.close()
		return Lost, err
	}
	return Answered, nil
}

func (c *wsClient) upgrade(id string) error {
	key := base64.StdEncoding.EncodeToString([]byte((id + "----------------")[:16]))
	if _, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", c.load.Path, c.load.Addr, key); err != nil {
		return err
	}
	resp, err := c.response("GET")
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusSwitchingProtocols:
		return &failure{fmt.Sprintf("status %d", resp.StatusCode), errors.New("no WebSocket")}
	case resp.Header.Get("Sec-WebSocket-Accept") != AcceptKey(key):
		return &failure{causeWrong, errors.New("the WebSocket's accept key")}
	}
	return nil
}

// echo sends id and waits until it comes back. After Handler's farewell the
// connection is closed: by the client, so that nothing is on its way.
func (c *wsClient) echo(id string) error {
	send, answer := byte(opText), byte(opText)
	if c.load.Kind.ping {
		send, answer = opPing, opPong
	}
	// Even if sending failed: the server may have said why before.
	sendErr := writeFrame(c.conn, send, []byte(id), true)
	bye := false
	for {
		op, payload, err := readFrame(c.br)
		if err != nil {
			return errors.Join(err, sendErr)
		}
		switch {
		case op == answer && string(payload) == id:
			if bye {
				c.goodbye()
			}
			return nil
		case op == opText && string(payload) == farewell:
			bye = true
		case op == opText && !c.load.Any:
			return &failure{causeWrong, fmt.Errorf("the echo of %q is %.*q", id, shownBody, payload)}
		case op == opPing:
			writeFrame(c.conn, opPong, payload, true)
		case op == opClose:
			return &closeError{closeCode(payload)}
		}
	}
}

// rest implements client. Of what the server says meanwhile only its end, a
// farewell and a ping matter.
func (c *wsClient) rest(flow context.Context, d time.Duration) bool {
	for until := time.Now().Add(d); time.Now().Before(until); {
		if c.line.rest(flow, time.Until(until)) || c.conn == nil {
			return true
		}
		if c.br.Buffered() == 0 {
			return false
		}
		c.conn.SetDeadline(time.Now().Add(c.load.Timeout))
		op, payload, err := readFrame(c.br)
		switch {
		case err != nil, op == opClose, op == opText && string(payload) == farewell:
			c.goodbye()
			return true
		case op == opPing:
			writeFrame(c.conn, opPong, payload, true)
		}
	}
	return c.conn == nil
}

// goodbye closes as RFC 6455 7.1.2 wants it: a close frame, then the end.
func (c *wsClient) goodbye() {
	writeFrame(c.conn, opClose, []byte{3, 0xe8}, true)
	c.close()
}
