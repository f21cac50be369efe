// Package graceful provides HTTP servers, and any other, that stop without
// losing a request.
package graceful
