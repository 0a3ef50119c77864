#include "console.h"
#include "cpu.h"
#include "platform.h"

#define COM1 0x3f8
#define UART_DATA (COM1 + 0)
#define UART_IER (COM1 + 1)
#define UART_FCR (COM1 + 2)
#define UART_LCR (COM1 + 3)
#define UART_MCR (COM1 + 4)
#define UART_LSR (COM1 + 5)
#define LCR_8N1 0x03
#define LCR_DLAB 0x80
#define FCR_ENABLE_CLEAR 0x07
#define MCR_DTR_RTS 0x03
#define LSR_THRE 0x20
#define LINE_SIZE 256

struct line {
    char text[LINE_SIZE];
    u32 length;
};

/*
 * Shared by all VPs and both VTLs. VTL1 never preempts a VTL0 that holds it: VTL0 calls or provokes VTL1 between lines only,
 * and nothing sends VTL1 an interrupt at other times.
 */
static volatile u8 lock;

void console_init(void)
{
    outb(UART_IER, 0);
    outb(UART_LCR, LCR_DLAB);
    outb(UART_DATA, 1);
    outb(UART_IER, 0);
    outb(UART_LCR, LCR_8N1);
    outb(UART_FCR, FCR_ENABLE_CLEAR);
    outb(UART_MCR, MCR_DTR_RTS);
}

static void put(struct line *line, char c)
{
    if (line->length < LINE_SIZE)
        line->text[line->length++] = c;
}

static void put_string(struct line *line, const char *s)
{
    while (*s)
        put(line, *s++);
}

static void put_number(struct line *line, u64 value, u32 base)
{
    char digits[20];
    u32 n = 0;

    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (n)
        put(line, digits[--n]);
}

static void format_line(struct line *line, const char *f, va_list arguments)
{
    for (; *f; f++) {
        if (*f != '%') {
            put(line, *f);
            continue;
        }
        bool wide = *++f == 'l';
        if (wide)
            f++;
        if (*f == 's')
            put_string(line, va_arg(arguments, const char *));
        else if (*f == 'c')
            put(line, (char)va_arg(arguments, int));
        else if (*f == 'u' || *f == 'x')
            put_number(line, wide ? va_arg(arguments, u64) : va_arg(arguments, u32), *f == 'u' ? 10 : 16);
        else
            put(line, *f);
    }
}

static void prefix(struct line *line)
{
    const struct vp *vp = this_vp();

    put_string(line, "[VTL");
    put_number(line, vp->vtl, 10);
    put_string(line, " VP");
    put_number(line, vp->index, 10);
    put_string(line, "] ");
}

static void write_line(const struct line *line)
{
    for (u32 i = 0; i <= line->length; i++) {
        while (!(inb(UART_LSR) & LSR_THRE))
            cpu_relax();
        outb(UART_DATA, i < line->length ? (u8)line->text[i] : '\n');
    }
}

void say_after(const char *before, const char *format, va_list arguments)
{
    struct line line = {.length = 0};

    prefix(&line);
    put_string(&line, before);
    format_line(&line, format, arguments);

    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE))
        while (lock)
            cpu_relax();
    write_line(&line);
    __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
}

void say(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    say_after("", format, arguments);
    va_end(arguments);
}

void fail(const char *format, ...)
{
    struct line line = {.length = 0};
    va_list arguments;

    /* The lock is left alone: whoever holds it may be what failed. */
    prefix(&line);
    put_string(&line, "FAIL: ");
    va_start(arguments, format);
    format_line(&line, format, arguments);
    va_end(arguments);
    write_line(&line);
    exit_with(1);
}
